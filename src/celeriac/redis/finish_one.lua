-- ARGV: ttl.

return finish_chord(KEYS, ARGV[1])
