"""One model over HTTP: a page for people, nanochat's endpoints, and an API that OpenAI's clients speak."""
