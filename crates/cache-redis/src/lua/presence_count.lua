return redis.call('ZCOUNT', KEYS[1], living, '+inf')
