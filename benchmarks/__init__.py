"""Speed and memory of moeify beside cp and beside its peers; results in docs/measured/speed.md."""
