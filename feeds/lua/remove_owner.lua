-- Takes all of one owner's photos out of a feed. KEYS: feed. ARGV: what the owner's entries end with.
for _, entry in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
    if string.sub(entry, -#ARGV[1]) == ARGV[1] then redis.call('LREM', KEYS[1], 1, entry) end
end
