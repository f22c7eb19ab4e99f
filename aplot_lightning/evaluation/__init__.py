"""From rewards to numbers, tables and plots: metrics of a set, intervals over prompts, reports of runs."""
