"""Photos of any size in bounded memory: bands of rows, windows of files, memory budgets."""
