-- Counts one request in several sliding windows, unless one of them is full.
-- KEYS: counters, "<number of the window> <requests in it> <requests in the one before>".
-- ARGV: the window's seconds, the time ("": this server's clock), the most requests for each counter.
-- Returns the seconds until a refused request would pass (0: it was counted), and what is left of each.
local window, now = tonumber(ARGV[1]), tonumber(ARGV[2])
if not now then
    local time = redis.call('TIME')
    now = time[1] + time[2] / 1000000
end
local number, elapsed = math.floor(now / window), now % window

local counters, wait = {}, 0
for i, key in ipairs(KEYS) do
    local stored, current, previous = string.match(redis.call('GET', key) or '', '(%d+) (%d+) (%d+)')
    stored = tonumber(stored)
    if stored == number then
        current, previous = tonumber(current), tonumber(previous)
    elseif stored == number - 1 then
        current, previous = 0, tonumber(current)
    else
        current, previous = 0, 0
    end
    local most = tonumber(ARGV[2 + i])
    local room = most - 1 - current -- for what the last window's requests weigh
    if previous * (window - elapsed) > room * window then
        -- When they will weigh little enough; or else, in the next window, when those of this one will.
        local at = room >= 0 and window - window * room / previous or 2 * window - window * (most - 1) / current
        wait = math.max(wait, 1, math.ceil(at - elapsed))
    end
    counters[i] = {key, current, previous, most}
end

local answer = {wait}
for i, counter in ipairs(counters) do
    local key, current, previous, most = unpack(counter)
    if wait == 0 then
        current = current + 1
        redis.call('SET', key, string.format('%d %d %d', number, current, previous), 'EX', 2 * window)
    end
    answer[1 + i] = math.max(0, math.floor(most - current - previous * (window - elapsed) / window))
end
return answer
