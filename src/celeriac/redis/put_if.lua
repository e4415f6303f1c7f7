-- KEYS: a record's; ARGV: the document that must be there, '' for none; the new one; ttl. Returns 1 if it was, else 0.

if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return 0
end
return store_record(KEYS[1], ARGV[2], ARGV[3])
