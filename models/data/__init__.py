"""What models see of a dataset: schema, item features, events, histories, popularity signals."""
