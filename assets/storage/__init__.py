"""Objects by key: the store, where each kind of object is, signed URLs and uploads in parts."""
