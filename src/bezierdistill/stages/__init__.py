"""The stages, a file a verb: its settings, its function, and what it prints.

    data -> train -> teachers -> simulate -> curve store -> distill -> student -> sample -> evaluate

Every function checks its input before it writes, and returns what it made. Importing a stage takes
no torch: what it works with is imported when it runs.
"""
