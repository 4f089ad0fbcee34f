"""Pages of HTML that load nothing: the report of a benchmark, and reviews."""
