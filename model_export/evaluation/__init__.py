"""What a run or a bundle is worth: measurements, policies compared, tables and figures."""
