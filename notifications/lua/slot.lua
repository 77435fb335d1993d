-- KEYS[1]: what was pushed of one thing. ARGV: the event, its ID, how many pushes come at once, seconds.
-- Returns which one of its events this is, if it is to be pushed: the first few are, then the 10th, 100th, 1000th …
local told = redis.call('HGET', KEYS[1], ARGV[1])
if told then -- this job before, or the like that was taken back and came again
    local id, number = string.match(told, '^(%d+) (%d+)$')
    return id == ARGV[2] and tonumber(number) or 0
end
local number = redis.call('HINCRBY', KEYS[1], 'n', 1)
if number == 1 then
    redis.call('EXPIRE', KEYS[1], ARGV[4])
end
if number > tonumber(ARGV[3]) and not string.find(string.format('%d', number), '^10+$') then
    return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. number)
return number
