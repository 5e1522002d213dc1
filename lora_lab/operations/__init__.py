"""What changes files: inputs to a Plan, a Plan to files and a Receipt."""
