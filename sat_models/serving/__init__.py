"""Talking to a model: chat session, command line, web page, HTTP."""
