"""The request's own house: the engine, the dispatcher, the door."""
