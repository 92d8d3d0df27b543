"""The miniature and its library: trained here, judged here, shipped in serving/commons."""
