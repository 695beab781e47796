"""The arguments of libraries that a job file may give, known without importing the libraries."""
