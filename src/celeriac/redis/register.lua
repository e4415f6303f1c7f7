-- Make a holder known. KEYS: a block for each queue. ARGV: separator, holder, milliseconds for which the queues count as
-- looked after.

local function main()
  insist(KEYS[1 + BEATS])
  for b = 1, #KEYS, BLOCK do
    call('HSET', KEYS[b + BEATS], ARGV[2], 1)
    call('SET', KEYS[b + ALIVE], '1', 'PX', ARGV[3])
  end
end

return answer(main)
