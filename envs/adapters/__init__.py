"""Environments of this project in the forms other libraries expect."""
