-- ARGV: index, task id, member, size, ttl.

return join_chord(KEYS, ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]) or false
