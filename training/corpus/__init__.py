"""The corpus of the sample model, written for it: facts, small talk, tasks and stories, and their held-out part."""
