"""What people see of a run: the console, figures, numbers with their intervals."""
