"""What a checkpoint says about how it was made: moeify.json and the model card."""
