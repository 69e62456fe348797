"""What differs between the tasks: targets, measures of quality."""
