"""Report on runs that there are: find them, group them, sum them up, and write tables, figures and a page."""
