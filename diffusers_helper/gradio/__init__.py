"""The page: layout, jobs, progress and the plot of guidance."""
