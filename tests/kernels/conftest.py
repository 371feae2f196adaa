"""checks/ is run by test_interpreted.py, in a process of its own."""

collect_ignore = ["checks"]
