"""The user's job file and the administrator's site file: read, checked, resolved (`load`)."""
