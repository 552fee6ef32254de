"""Where files come from: contexts that clients send, web servers, Git repositories."""
