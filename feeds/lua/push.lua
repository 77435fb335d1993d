-- Puts one entry into many feeds: at its place by ID, once, and only where a feed exists or is being rebuilt.
-- KEYS: feeds. ARGV: entry, most entries in a feed.
local entry, length = ARGV[1], tonumber(ARGV[2])

for _, feed in ipairs(KEYS) do
    redis.call('LPUSHX', feed .. ':rebuilding', entry)
    local newest = redis.call('LINDEX', feed, 0)
    if newest and entry > newest then
        if redis.call('LPUSH', feed, entry) > length then
            redis.call('LTRIM', feed, 0, length - 1)
        end
    elseif newest and entry ~= newest then
        -- Late, or a retry: find its place.
        local entries = redis.call('LRANGE', feed, 0, -1)
        for _, other in ipairs(entries) do
            if other == entry then break end
            if other < entry then
                redis.call('LINSERT', feed, 'BEFORE', other, entry)
                redis.call('LTRIM', feed, 0, length - 1)
                break
            end
        end
    end
end
