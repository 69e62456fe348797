"""Model training and export."""
