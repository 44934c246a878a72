"""Reports on runs: tables, pictures and an HTML page."""
