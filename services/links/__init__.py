"""Learned links as an artifact: mined by a job, shown, edited and audited by people, served by retrieval."""
