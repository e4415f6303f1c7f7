-- Publish messages that are not due yet: into the schedule while a consumer of ours looks after it, else in Celery's
-- own form, as ready ones whose header tells a worker to wait.
-- KEYS: a queue's block. ARGV: separator, then of each message: due, id, message. Returns how many.

local b = 1

local function main()
  local looked_after = is_looked_after(b)
  if not looked_after then
    -- Nor is what the last of ours left when it was killed: a part of it goes with this.
    unschedule(b, bounded(b, call('ZRANGE', KEYS[b + SCHEDULE], 0, 999)))
  end
  for n = 2, #ARGV, 3 do
    local due, id, message = ARGV[n], ARGV[n + 1], ARGV[n + 2]
    if looked_after then
      schedule(b, id, due, message)
    else
      call('LPUSH', ready_key(b, step_of(id)), message)
    end
  end
  return (#ARGV - 1) / 3
end

return answer(main)
