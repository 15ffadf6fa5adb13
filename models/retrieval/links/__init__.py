"""Learned links: which attribute values of a member and of an item together led to confirmed hires.

"Learning to Retrieve for Job Matching" (arXiv 2402.13435) section 3, "auto-targeting". A meta link pairs one value of a
member's attribute with one of an item's; a link is a set of meta links that must all hold. Links are mined from
confirmed hires, weighted by a logistic regression with an L1 penalty, and kept as rows that people can read and edit.
Nothing here is about jobs: a hire is whatever action the dataset calls confirmed.
"""
