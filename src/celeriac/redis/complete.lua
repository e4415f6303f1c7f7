-- Carry out what became of deliveries. Each by itself: check that it is held, publish what follows, store its records,
-- put its message where it goes, and only then let go of it. One that fails stays held, and the others are done.
--
-- KEYS: blocks of queues, in whose place of what is held stands our holder's, and beside them keys of lists.
-- ARGV: separator, then of each delivery: block (0: none), claim, what becomes of it and what that takes, number of
-- messages and what each takes, number of records and the arguments of put_record for each.
--   what becomes of it: A: done; R, C: back to the front, C is counted; D due id: later; E due id message: later, and
--   as another message; K: it stays.
--   a message: L key message; S block due id message; P channel message.
-- Returns of each that was not carried out its number from 0, and what failed: "lost", "publish", "store" or "settle",
-- and why.

local cursor = 1

local function read()
  cursor = cursor + 1
  return ARGV[cursor]
end

local TAKES = {A = 0, R = 0, C = 0, D = 2, E = 3, K = 0, L = 2, S = 4, P = 2}

local function read_step()
  local step = {read()}
  for n = 1, TAKES[step[1]] do
    step[n + 1] = read()
  end
  return step
end

local function read_item()
  local item = {block = tonumber(read()), claim = read(), settlement = read_step(), messages = {}, records = {}}
  for n = 1, tonumber(read()) do
    item.messages[n] = read_step()
  end
  for n = 1, tonumber(read()) do
    item.records[n] = {read(), read(), read(), read()}
  end
  return item
end

local function publish(message)
  local kind = message[1]
  if kind == 'L' then
    call('LPUSH', KEYS[tonumber(message[2])], message[3])
  elseif kind == 'P' then
    call('PUBLISH', message[2], message[3])
  else
    local b, due, id, data = tonumber(message[2]), message[3], message[4], message[5]
    if is_looked_after(b) then
      schedule(b, id, due, data)
    else
      call('LPUSH', ready_key(b, step_of(id)), data)
    end
  end
end

local function put_away(b, claim, settlement)
  local kind = settlement[1]
  if kind == 'R' or kind == 'C' then
    local message = call('HGET', KEYS[b + HELD], claim)
    call('RPUSH', ready_key(b, step_of(claim)), marked(message, kind == 'C' and 1 or 0))
  elseif kind == 'D' then
    schedule(b, settlement[3], settlement[2], call('HGET', KEYS[b + HELD], claim))
  elseif kind == 'E' then
    schedule(b, settlement[3], settlement[2], settlement[4])
  end
end

local phase

local function carry_out(item)
  local b, kind = item.block, item.settlement[1]
  if b > 0 and call('HEXISTS', KEYS[b + HELD], item.claim) == 0 then
    return 'lost'
  end
  if b > 0 and #item.messages == 0 then
    insist(KEYS[b + HELD])
  end
  phase = 'publish'
  for _, message in ipairs(item.messages) do
    publish(message)
  end
  phase = 'store'
  for _, record in ipairs(item.records) do
    if put_record(record[1], record[2], record[3], record[4]) == -1 then
      store_record(record[1], record[2], record[3])
    end
  end
  phase = 'settle'
  if kind ~= 'K' then
    put_away(b, item.claim, item.settlement)
    call('HDEL', KEYS[b + HELD], item.claim)
  end
end

-- What the server says of itself, and not of one delivery: it is no good any more, or not yet.
local LEAVE = {READONLY = true, MASTERDOWN = true, LOADING = true, MISCONF = true, NOREPLICAS = true}

local function main()
  local failed, number = {}, 0
  while cursor < #ARGV do
    local item = read_item()
    local done, reply = pcall(carry_out, item)
    if not done then
      if LEAVE[string.match(reason_of(reply), '^%u+')] then
        error(reply, 0)
      end
      failed[#failed + 1] = {number, phase or 'settle', reason_of(reply)}
    elseif reply then
      failed[#failed + 1] = {number, reply, ''}
    end
    number = number + 1
  end
  return failed
end

return answer(main)
