"""What the package costs beside its peers, and whole experiments: run as modules from the root of the repository."""
