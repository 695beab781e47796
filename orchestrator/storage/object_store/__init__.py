"""Storage on object stores: create-if-absent, multipart uploads, what their errors mean."""
