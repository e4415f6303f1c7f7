-- KEYS: of records; ARGV: document, ttl, guard of each. Returns what became of each (see put_record).

local outcomes = {}
for n, key in ipairs(KEYS) do
  outcomes[n] = put_record(key, ARGV[3 * n - 2], ARGV[3 * n - 1], ARGV[3 * n])
end
return outcomes
