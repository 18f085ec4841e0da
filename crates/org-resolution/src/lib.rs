//! Who is asking: org resolution and token caching as tower layers.
