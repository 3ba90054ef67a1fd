"""checkly-etl: copies Checkly's test sessions into a SQL warehouse before they are deleted."""
