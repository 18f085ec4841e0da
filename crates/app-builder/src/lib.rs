//! Assembly: the whole layer in memory or on Redis, by whether REDIS_URL is set.
