"""What the files hold: pydantic models of the job file and the site's file."""
