"""Files become arrays mapped into memory."""
