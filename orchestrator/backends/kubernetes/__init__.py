"""Kubernetes: one batch/v1 Job is one attempt; the server is asked over its REST API."""
