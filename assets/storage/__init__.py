"""Object storage: the store, object paths, signed URLs and multipart uploads."""
