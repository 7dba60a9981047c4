"""Suites that every backend of a stage has to pass: subclass one in a test module, and give it your backend."""
