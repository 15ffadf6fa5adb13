"""Jobs that turn the archive into models and an index: load, train, publish, build."""
