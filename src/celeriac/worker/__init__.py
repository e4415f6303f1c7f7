"""The worker parent: fetch → admit → dispatch → complete. It runs no user code and decodes no body."""
