"""What moeify knows of each model family, as data."""
