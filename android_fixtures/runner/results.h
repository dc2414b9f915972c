// The results file (docs/results-format.md): a header, a row a picture, a closing line. Only ever appended to.
#pragma once

#include "inputs.h"
#include "sha256.h"

#include <set>
#include <string>

class ResultsFile {
public:
    // Opens a file, or goes on with one of the same header behind its last whole row. `wanted`: keys that may have a
    // row. Raises UserError: another run's file, one that was changed, one that another runner has open.
    ResultsFile(const std::string & path, const Json & header, const std::set<std::string> & wanted);
    ~ResultsFile();
    ResultsFile(const ResultsFile &) = delete;
    ResultsFile & operator=(const ResultsFile &) = delete;

    bool has(const std::string & key) const { return keys.count(key) > 0; }
    size_t rows() const { return keys.size(); }

    // Writes one row; it survives a kill at once and a power cut after some seconds.
    void append(const std::string & key, const Json & row);

    // Writes the closing line where every picture has its row and none stands there.
    void finish();

private:
    void open_file();
    void resume(const Json & header);
    void check_header(const std::string & line, const Json & header) const;
    bool take(const std::string & line, size_t number);
    void write_line(const std::string & line);
    [[noreturn]] void refuse(const std::string & what) const;

    const std::string path;
    const std::set<std::string> & wanted;
    int handle = -1;
    bool closed = false;  // its closing line is there
    uint64_t length = 0;  // bytes of header and whole rows
    Sha256 hash;  // of these
    std::set<std::string> keys;
    int64_t synced = 0;  // when, in seconds
};
